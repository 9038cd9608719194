"""The 9-class ISIC folders, Train/<class> and Test/<class>, validation cut from Train; variants as in ham10000."""

from ml_collections import ConfigDict

from lesion.configs import ham10000


def get_config(variant: str = 'cnn') -> ConfigDict:
    """The HAM10000 recipe, for more epochs of fewer images. As published, the set is for a first try, not for claims.

    Nearly all of its seborrheic keratoses are byte-identical to melanomas, many of its actinic keratoses to nevi, and
    of the latter 15 of 16 in Test. With config.dataset.drop_contradictory, training sees no image under two labels.
    """
    config = ham10000.get_config(variant)
    config.dataset.update(name='isic9', image_size=(112, 112))
    config.duration = '60epochs'
    return config
