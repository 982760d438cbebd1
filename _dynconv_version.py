"""The version of dynconv, said once."""

# Neither `dynconv_jax` nor `dynconv_torch` imports the other, and both are to know the
# version in a checkout that is not installed too, where no metadata say it. So it
# stands in a module beside them that comes with either; the build reads it here.
__version__ = "0.1.0"
