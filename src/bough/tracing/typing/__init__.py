"""Types of the values of recorded calls: one recorder binds the axes of all of them."""
