"""Initialisers in the calling styles of JAX, Keras and TensorFlow. fastinit imports none of these modules itself."""
