"""Report on the results of a matrix: one HTML page that opens offline, a CSV file and a LaTeX table; see README.md."""
