"""The commands of `cleanai`, a file for those that belong together. What a command needs is imported when it runs."""
