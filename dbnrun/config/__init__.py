"""What a user can choose, and the config of a run that is made of it."""
