"""The cloud's side: profiles, augmentation, training, and the service that runs them."""
