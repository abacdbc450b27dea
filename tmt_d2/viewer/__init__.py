"""The page that ``demo/app.py`` opens, to look into a model by clicking at an image. All but the page runs without Gradio.

``models`` look at ``pictures`` and ``answer`` in HTML; ``page`` says what is where, ``events`` what happens, ``server``
who gets it.
"""
