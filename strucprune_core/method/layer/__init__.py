"""Inside one layer: which channels go (`damage_curve`) and what the rest become (`ridge`)."""
