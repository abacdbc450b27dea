"""The five data sets and custom ones: ids, layouts, registration."""
