"""build on resnet56: a plain class."""


class CustomPool:
    def __call__(self, x):
        return x.mean((2, 3))
