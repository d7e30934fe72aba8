"""Training recipe of fwi's learned priors: gather in, velocity map out."""
