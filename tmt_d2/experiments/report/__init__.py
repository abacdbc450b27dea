"""What a matrix found: one HTML page that opens offline, a CSV file and a LaTeX table.

``results`` reads the folders, ``statistics`` says what is noise, ``charts`` draws SVG, ``page`` puts ``sections`` in order, ``tables`` writes.
"""
