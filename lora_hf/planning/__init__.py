"""What a run will take, before anything is downloaded or trained."""
