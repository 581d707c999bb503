"""The model of the paper's figure 2: encoders, the shared codebook, reconstruction."""
