"""The rooms of the first version, as they were, until new ones replace them."""
