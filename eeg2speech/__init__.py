"""Speech generated from EEG by a latent diffusion model, behind an honest instrument.

`eeg2speech` holds the data contracts, the models and their training; the package `eval` generates
and scores; the package `reports` renders. Importing this package is cheap: heavy libraries load
where they are used.
"""

__version__ = "0.1.0"
