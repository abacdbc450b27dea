"""The sections of the page: functions from ``ReportData`` to a ``Section``, grouped by subject."""
