"""How fast training is, beside other learners on the same work in the same run, and whether what is fast learns."""
