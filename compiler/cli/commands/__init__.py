"""The commands of `compile`, one file each. What is heavy is imported inside the function that needs it."""
