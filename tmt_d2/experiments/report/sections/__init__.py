"""The sections of the page, each a function from a ``View`` to a ``Section``, grouped by what they are about."""
