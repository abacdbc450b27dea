"""What a matrix found: one HTML page that opens offline, a CSV file and a LaTeX table.

``results`` reads the folders, ``statistics`` says what is noise, ``sections`` are what the page shows, ``document``
puts them into ``templates``, ``tables`` and ``writing`` write.
"""
