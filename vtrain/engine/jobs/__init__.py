"""Jobs made runnable: the program that a job names, its data, and the step that trainer and auditor run."""
