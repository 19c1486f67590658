"""Where the jobs of a study or a search are done: in this process, or by workers on other machines."""
