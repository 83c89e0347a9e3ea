"""Which of MediaPipe's 468 landmarks is what. Left and right are the person's own."""

from __future__ import annotations

# Contours run from the person's right (the image's left) to the left.
LIPS_OUTER_UPPER = (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291)
LIPS_OUTER_LOWER = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291)
LIPS_INNER_UPPER = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308)
LIPS_INNER_LOWER = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308)
MOUTH_CORNERS = (61, 291, 78, 308)

EYE_RIGHT_UPPER = (33, 246, 161, 160, 159, 158, 157, 173, 133)
EYE_RIGHT_LOWER = (33, 7, 163, 144, 145, 153, 154, 155, 133)
EYE_LEFT_UPPER = (362, 398, 384, 385, 386, 387, 388, 466, 263)
EYE_LEFT_LOWER = (362, 382, 381, 380, 374, 373, 390, 249, 263)
BROW_RIGHT_UPPER = (70, 63, 105, 66, 107)
BROW_RIGHT_LOWER = (46, 53, 52, 65, 55)
BROW_LEFT_UPPER = (336, 296, 334, 293, 300)
BROW_LEFT_LOWER = (285, 295, 282, 283, 276)

FACE_OVAL = (
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377,
    152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
)  # fmt: skip

FOREHEAD, CHIN = 10, 152
EAR_RIGHT, EAR_LEFT = 234, 454
EYE_OUTER_RIGHT, EYE_OUTER_LEFT = 33, 263
IRIS_RIGHT, IRIS_LEFT = (468, 469, 470, 471, 472), (473, 474, 475, 476, 477)  # the centre, then four on the rim

# Points that an expression hardly moves: forehead, temples, nose bridge and tip, eye corners. A head pose is fitted
# on them.
STABLE = (
    10, 67, 103, 109, 151, 297, 332, 338, 9, 8, 168, 6, 197, 195, 5, 4, 1, 21, 251, 54, 284, 162, 389, 127, 356, 234,
    454, 33, 133, 362, 263, 143, 372, 34, 264, 122, 351, 188, 412,
)  # fmt: skip
# What an expression keypoint must stand on whatever the portrait; the rest of the face is filled evenly.
EXPRESSION_CORE = tuple(
    dict.fromkeys(
        LIPS_OUTER_UPPER + LIPS_OUTER_LOWER + LIPS_INNER_UPPER + LIPS_INNER_LOWER
        + BROW_RIGHT_UPPER + BROW_LEFT_UPPER + BROW_RIGHT_LOWER + BROW_LEFT_LOWER
        + FACE_OVAL[::2] + (18, 200, 199, 175, 83, 313, 182, 406, 1, 2, 98, 327, 164)
        + (33, 133, 362, 263, 159, 386, 145, 374)
    )
)  # fmt: skip
