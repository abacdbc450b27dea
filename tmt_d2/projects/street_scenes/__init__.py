"""Makes and checks the data: ``datasets.render`` draws street scenes in the formats of the five real data sets."""
