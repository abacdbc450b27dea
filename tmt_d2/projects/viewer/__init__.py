"""The page that ``demo/app.py`` opens: click at an image to look into a model. Only the last three need Gradio.

``trained_models`` look at ``uploads`` and examples, ``pixel_view`` shows in HTML what they see; ``page`` says what is
where, ``events`` what happens, ``server`` who gets it.
"""
