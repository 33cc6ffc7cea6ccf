"""Models: the zoo, anybody's modules seen through their stages, and the frozen teacher."""
