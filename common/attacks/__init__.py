"""Attacks: from images to adversarial images, and how robust a network is to them.

Every attack has the signature `attack(network, x, labels, *, targets=None, ...)`. It takes
float32 images x (N, 3, S, S) in [0, 1] ("pixel space") and their true classes, int64 (N,), and
returns images of the same shape, range and device. `universal` returns one noise instead,
`minimal_noise` also the norm of each image's noise. `square`, `deepfool` and `minimal_noise`
take no targets, the last two no epsilon; `optimise` and `minimise` need targets, and take no
epsilon.

Without targets an attack raises the loss of the true class; with targets (N,) it lowers the
loss of the target. At epsilon 0 an attack returns x itself. The network's mode and the
gradients of its parameters are restored afterwards. Random numbers come from `generator` alone
(None: a new generator with seed 0). An attack raises InputError for an epsilon outside [0, 1]
(of L2 norms: below 0) and for a target that is the true class.
"""
