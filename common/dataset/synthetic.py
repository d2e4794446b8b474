"""Synthetic images of cars, trucks and cats, to try the pipeline without CIFAR-10.

Results on these drawings say nothing about CIFAR-10. Colours, backgrounds and light have the
same distribution for every class, so that only the shape tells the class.
"""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

CLASSES = ("automobile", "truck", "cat")
SIZE = 32
CANVAS = 4 * SIZE  # draw at four times the size, then reduce, for smooth edges

Colour = tuple[int, int, int]
Point = tuple[float, float]
Pen = ImageDraw.ImageDraw
Rng = np.random.Generator
Bounds = tuple[tuple[float, ...], tuple[float, ...]]  # lower and upper, of several numbers

BLACK, GLASS, FRONT_LAMP, REAR_LAMP = (24, 24, 26), (70, 84, 98), (244, 240, 206), (190, 34, 30)

# Bounds for vehicles seen from the side: length of the tail behind the cabin, length of the
# bonnet, heights of body and cabin, slope of the windscreen, length of the windowless part of
# the cabin, height of the load on the tail. All lengths here are in pixels of the canvas.
CAR_SIDES = (
    ((0, 18, 18, 15, 8, 0, 0), (4, 34, 26, 23, 18, 0, 0)),  # hatchback
    ((12, 20, 18, 15, 8, 0, 0), (26, 34, 26, 22, 18, 0, 0)),  # saloon
)
TRUCK_SIDES = (
    ((0, 6, 24, 22, 4, 32, 0), (0, 20, 34, 34, 12, 52, 0)),  # van
    ((36, 16, 22, 18, 3, 0, 0), (50, 26, 30, 28, 10, 0, 0)),  # pickup
    ((54, 2, 20, 18, 3, 0, 28), (68, 10, 30, 28, 10, 0, 54)),  # box truck
)
# Bounds for vehicles seen from the front or back: width, height, share of the body in it.
CAR_END = ((80, 46, 0.45), (106, 64, 0.55))
TRUCK_END = ((62, 74, 0.5), (90, 106, 0.65))


def draw(label: int, seed: int | tuple[int, ...]) -> np.ndarray:
    """Return an image of CLASSES[label], uint8 (32, 32, 3).

    The image depends only on label and seed: a whole number of at least 0, or several.
    """
    numbers = seed if isinstance(seed, tuple) else (seed,)
    # The label comes last and is never 0, because (5,) and (5, 0) are the same seed in NumPy.
    rng = np.random.default_rng((*numbers, label + 1))
    subject = Image.new("RGBA", (CANVAS, CANVAS))
    pen = ImageDraw.Draw(subject)
    if CLASSES[label] == "automobile":
        _vehicle(pen, rng, CAR_SIDES, CAR_END)
    elif CLASSES[label] == "truck":
        _vehicle(pen, rng, TRUCK_SIDES, TRUCK_END)
    else:
        _cat(pen, rng)
    subject = _pose(subject, rng)
    scene = _background(rng)
    scene.paste(subject, mask=subject)
    _clutter(ImageDraw.Draw(scene), rng, most=1, size=48)
    return _photograph(scene.reduce(CANVAS // SIZE), rng)


def _vehicle(pen: Pen, rng: Rng, sides: tuple[Bounds, ...], end: Bounds) -> None:
    """Draw a vehicle from the side, or in a quarter of the images from the front or back."""
    if rng.random() < 0.25:
        _vehicle_end(pen, rng, end)
    else:
        _vehicle_side(pen, rng, sides[rng.integers(len(sides))])


def _vehicle_side(pen: Pen, rng: Rng, bounds: Bounds) -> None:
    """Draw a vehicle that heads right, in some images with its front or back visible."""
    tail, bonnet, body, cabin, slope, windowless, load = rng.uniform(*bounds).tolist()
    paint, glass = _random_colour(rng), _shade(GLASS, rng.uniform(0.4, 1.9))
    left, right, sill = 6.0, rng.uniform(104, 120), 96.0
    waist, roof = sill - body, sill - body - cabin
    back, front = left + tail, right - bonnet
    # The offset of the far side from the near side. To the right: the front is visible.
    depth = (0.0, 0.0) if rng.random() < 0.4 else (rng.uniform(-34, 34), rng.uniform(-12, -2))

    outline = [(left, sill), (left + 1, waist + 2), (back, waist), (back + 4, roof)]
    outline += [(front - slope, roof), (front, waist), (right - 2, waist + 5), (right, sill)]
    rear_window, windscreen = 2, 4  # the edges from the roof down to the body
    _prism(pen, outline, depth, paint, {rear_window: glass, windscreen: glass})
    start = back + windowless + 7
    pane = [(start - 2, waist - 1), (start, roof + 4)]
    pen.polygon([*pane, (front - slope - 1, roof + 4), (front - 4, waist - 1)], fill=glass)
    pillar = (start + front - slope) / 2
    pen.line([(pillar, roof), (pillar, sill - 4)], fill=_shade(paint, 0.75), width=2)
    pen.line([(left, waist + 6), (right, waist + 6)], fill=_shade(paint, 0.85), width=2)
    for x, lamp in ((left + 2, REAR_LAMP), (right - 4, FRONT_LAMP)):
        pen.rectangle((x - 2, waist + 7, x + 3, waist + 13), fill=lamp)
    if load:
        end = back - 2
        box = [(2, waist + 8), (2, waist - load), (end, waist - load), (end, waist + 8)]
        _prism(pen, box, depth, _random_colour(rng), {})
    radius = rng.uniform(9, 13)
    for x in (left + rng.uniform(16, 26), right - rng.uniform(16, 24)):
        _disc(pen, (x, sill), radius, BLACK)
        _disc(pen, (x, sill), radius / 2, _shade((170, 170, 174), rng.uniform(0.4, 1.2)))


def _prism(
    pen: Pen, outline: list[Point], depth: Point, paint: Colour, windows: dict[int, Colour]
) -> None:
    """Draw a prism: its near side, and the surfaces between the near and far sides.

    outline: the near side, clockwise from the lower left. depth: the offset of the far side.
    windows: edge number -> the colour of the surface at that edge, instead of `paint`.
    """
    edges = list(enumerate(zip(outline, outline[1:] + outline[:1], strict=True)))
    # Surfaces farther along depth lie behind the others, so they are drawn first.
    for number, (start, end) in edges if depth[0] < 0 else reversed(edges):
        across, down = end[0] - start[0], end[1] - start[1]
        if down * depth[0] - across * depth[1] <= 0:
            continue  # the surface faces away from the viewer
        fill = _shade(paint, 1.15 if abs(across) > abs(down) else 0.7)
        far = [(x + depth[0], y + depth[1]) for x, y in (end, start)]
        pen.polygon([start, end, *far], fill=windows.get(number, fill))
    pen.polygon(outline, fill=paint)


def _vehicle_end(pen: Pen, rng: Rng, bounds: Bounds) -> None:
    """Draw a vehicle from the front or back."""
    width, height, share = rng.uniform(*bounds).tolist()
    paint, glass = _random_colour(rng), _shade(GLASS, rng.uniform(0.4, 1.9))
    lamp = FRONT_LAMP if rng.random() < 0.6 else REAR_LAMP
    middle, half, ground = CANVAS / 2, width / 2, 104.0
    top, waist = ground - height, ground - height * share
    roof = half * rng.uniform(0.66, 0.95)
    for x in (middle - half + 9, middle + half - 9):
        pen.rectangle((x - 8, ground - 14, x + 8, ground + 4), fill=BLACK)
    for inset, fill in ((0, paint), (5, glass)):
        upper = [(middle - roof + inset, top + inset), (middle + roof - inset, top + inset)]
        lower = [(middle + half - inset, waist), (middle - half + inset, waist)]
        pen.polygon(upper + lower, fill=fill)
    pen.rounded_rectangle((middle - half, waist, middle + half, ground - 5), 6, fill=paint)
    y = waist + (ground - waist) * rng.uniform(0.25, 0.5)
    for x in (middle - half + 11, middle + half - 11):
        _disc(pen, (x, y), 6, lamp)
    pen.rectangle((middle - half / 2, y - 3, middle + half / 2, y + 6), fill=(40, 40, 42))
    pen.rectangle((middle - 9, ground - 16, middle + 9, ground - 10), fill=(224, 224, 214))


def _cat(pen: Pen, rng: Rng) -> None:
    """Draw a cat's head, or a cat that sits or lies, heading right."""
    coat = _random_colour(rng)
    dark, chest = _shade(coat, rng.uniform(0.5, 0.8)), _shade(coat, rng.uniform(1.0, 1.5))
    pose = rng.integers(3)
    if pose == 0:
        x, y, size = 64, 66, rng.uniform(36, 46)
        _disc(pen, (64, 132), rng.uniform(40, 56), coat)
    elif pose == 1:  # sits
        x, y, size = rng.uniform(54, 82), rng.uniform(32, 42), rng.uniform(18, 25)
        pen.arc((8, 76, 64, 112), 40, 250, fill=dark, width=8)
        pen.ellipse((34, 54, 92, 114), fill=coat)
        pen.polygon([(44, 84), (x - 14, 44), (x + 14, 44), (88, 84)], fill=coat)
        pen.ellipse((x - 11, 50, x + 11, 90), fill=chest)
        for leg in (58, 72):
            pen.rounded_rectangle((leg - 6, 80, leg + 6, 116), 5, fill=chest, outline=dark)
    else:  # lies
        x, y, size = rng.uniform(86, 100), rng.uniform(56, 80), rng.uniform(17, 24)
        pen.arc((2, 76, 60, 110), 60, 200, fill=dark, width=8)
        pen.ellipse((10, rng.uniform(48, 64), x, 108), fill=coat)
        pen.rounded_rectangle((56, 96, 112, 108), 6, fill=chest, outline=dark)
        for stripe in (34, 48, 62):
            pen.line([(stripe, 68), (stripe + 5, 86)], fill=dark, width=4)
    _cat_head(pen, rng, (x, y), size, coat, chest)


def _cat_head(pen: Pen, rng: Rng, at: Point, size: float, coat: Colour, chest: Colour) -> None:
    x, y = at
    tip = y - rng.uniform(1.15, 1.5) * size
    for side in (-size, size):
        ear = [(x + side, y - 0.1 * size), (x + 0.8 * side, tip), (x, y - 0.7 * size)]
        pen.polygon(ear, fill=coat, outline=_shade(coat, 0.6), width=3)
    pen.ellipse((x - size, y - 0.85 * size, x + size, y + 0.85 * size), fill=coat)
    x += rng.uniform(-0.2, 0.2) * size  # the cat looks slightly to one side
    pen.ellipse((x - 0.5 * size, y + 0.1 * size, x + 0.5 * size, y + 0.8 * size), fill=chest)
    iris = ((150, 170, 60), (214, 170, 50), (110, 150, 180))[rng.integers(3)]
    for eye in ((x - 0.42 * size, y - 0.1 * size), (x + 0.42 * size, y - 0.1 * size)):
        _disc(pen, eye, 0.2 * size, iris)
        _disc(pen, eye, 0.11 * size, BLACK)
    _disc(pen, (x, y + 0.27 * size), 0.1 * size, (150, 84, 84))


def _disc(pen: Pen, centre: Point, radius: float, fill: Colour) -> None:
    x, y = centre
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)


def _random_colour(rng: Rng) -> Colour:
    """Return a colour for a cat, vehicle or object: black to white, blue-grey to ginger."""
    warmth = rng.normal(0.12, 0.25)
    return _shade((1 + warmth, rng.uniform(0.8, 1.05), 1 - warmth), rng.uniform(35, 225))


def _shade(colour: tuple[float, float, float], factor: float) -> Colour:
    """Return the colour with its brightness multiplied by factor."""
    red, green, blue = (min(max(int(part * factor), 0), 255) for part in colour)
    return red, green, blue


def _pose(subject: Image.Image, rng: Rng) -> Image.Image:
    """Return the subject at random rotated, mirrored, scaled, stretched and shifted."""
    angle = math.radians(rng.normal(0, 6))
    scale_y = rng.uniform(0.7, 1.2)
    scale_x = scale_y * rng.uniform(0.8, 1.15)
    if rng.random() < 0.5:
        scale_x = -scale_x
    # PIL expects the map from output coordinates to input coordinates.
    a, b = math.cos(angle) / scale_x, math.sin(angle) / scale_x
    d, e = -math.sin(angle) / scale_y, math.cos(angle) / scale_y
    x, y = (CANVAS / 2 + rng.uniform(-16, 16, 2)).tolist()
    shift_x, shift_y = CANVAS / 2 - a * x - b * y, CANVAS / 2 - d * x - e * y
    return subject.transform(
        subject.size, Image.Transform.AFFINE, (a, b, shift_x, d, e, shift_y)
    )


def _background(rng: Rng) -> Image.Image:
    """Return sky or wall above road, grass or floor, unevenly lit, with random objects."""
    patches = rng.normal(0, 14, (4, 3, 1)) + rng.normal(0, 5, (4, 3, 3))
    horizon = rng.integers(1, 4)
    upper, lower = rng.uniform(60, 240, 3), rng.uniform(30, 200, 3)
    # Halfway to grey, like real rooms and streets.
    patches[:horizon] += (upper + upper.mean()) / 2
    patches[horizon:] += (lower + lower.mean()) / 2
    small = Image.fromarray(patches.clip(0, 255).astype(np.uint8))
    # The final image is no finer than this, and smoothing the whole canvas takes far longer.
    smooth = small.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    image = smooth.resize((CANVAS, CANVAS), Image.Resampling.NEAREST)
    _clutter(ImageDraw.Draw(image), rng, most=4, size=70)
    return image


def _clutter(pen: Pen, rng: Rng, most: int, size: float) -> None:
    """Draw up to `most` boxes, posts and bushes of at most `size` pixels."""
    for _ in range(rng.integers(most + 1)):
        left, bottom = rng.uniform(-20, CANVAS), rng.uniform(40, 120)
        box = (left, bottom - size * rng.random(), left + size * rng.random(), bottom)
        shape = pen.rectangle if rng.random() < 0.6 else pen.ellipse
        shape(box, fill=_random_colour(rng))


def _photograph(scene: Image.Image, rng: Rng) -> np.ndarray:
    """Return the pixels of the scene with random blur, tint, contrast, brightness and noise."""
    if rng.random() < 0.4:
        scene = scene.filter(ImageFilter.BoxBlur(rng.uniform(0.2, 0.8)))
    pixels = np.asarray(scene, dtype=np.float32)
    contrast = rng.uniform(0.45, 1.1) * rng.uniform(0.9, 1.1, 3).astype(np.float32)
    noise = rng.uniform(2, 10) * rng.standard_normal(pixels.shape, dtype=np.float32)
    pixels = (pixels - 120) * contrast + rng.uniform(80, 160) + noise
    return pixels.clip(0, 255).astype(np.uint8)
