"""The page that ``demo/app.py`` opens: click at an image to look into a model. Only the last three need Gradio.

``models`` look at ``pictures`` and ``answer`` in HTML; ``page`` says what is where, ``events`` what happens, ``server``
who gets it.
"""
