"""The registry: a model's name and where its class is; imported only when asked for."""

MODELS: dict[str, str] = {
    "vae": "genmodels.models.vae:VAE",
    "dcgan": "genmodels.models.dcgan:DCGAN",
    "infogan": "genmodels.models.infogan:InfoGAN",
    "text2image": "genmodels.models.text2image:Text2Image",
    "progan": "genmodels.models.progan:ProGAN",
}
