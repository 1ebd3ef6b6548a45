"""What a data set looks like, and what is wrong with it, before anything is trained."""
