"""What a user can type after `selfspec`: one file a verb, each read from top to bottom."""
