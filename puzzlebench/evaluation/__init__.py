"""What a child keeps of its parent: tasks of the LM Evaluation Harness, paired by document."""
