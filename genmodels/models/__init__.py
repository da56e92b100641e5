"""The registry: a model's name and where its class is; imported only when asked for."""

MODELS: dict[str, str] = {
    "autoencoder": "genmodels.models.autoencoder:Autoencoder",
    "vae": "genmodels.models.vae:VAE",
    "aae": "genmodels.models.aae:AAE",
    "gan": "genmodels.models.gan:GAN",
    "dcgan": "genmodels.models.dcgan:DCGAN",
    "infogan": "genmodels.models.infogan:InfoGAN",
    "text2image": "genmodels.models.text2image:Text2Image",
    "cyclegan": "genmodels.models.cyclegan:CycleGAN",
    "stargan": "genmodels.models.stargan:StarGAN",
    "puzzlegan": "genmodels.models.puzzlegan:PuzzleGAN",
    "progan": "genmodels.models.progan:ProGAN",
}
