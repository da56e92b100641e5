"""The registry: a model's name and where its class is; imported only when asked for."""

MODELS: dict[str, str] = {
    "vae": "genmodels.models.vae:VAE",
    "dcgan": "genmodels.models.dcgan:DCGAN",
    "cyclegan": "genmodels.models.cyclegan:CycleGAN",
    "stargan": "genmodels.models.stargan:StarGAN",
    "puzzlegan": "genmodels.models.puzzlegan:PuzzleGAN",
    "progan": "genmodels.models.progan:ProGAN",
}
