"""Models: the zoo, and a wrapper that gives the stages of any module."""
