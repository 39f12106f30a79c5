"""Who draws into a tensor, from what, and the drawing."""
