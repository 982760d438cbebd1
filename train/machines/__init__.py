"""On what a run computes, and who watches over it."""
