"""The stages of a study on Ray. Nothing outside this package imports ray."""
