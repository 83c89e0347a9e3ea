"""The 3D face: where it is (landmarks), and later its shape, its camera and its fitting."""

from fastface.face.landmarks import Face, Landmarks, MediaPipeLandmarks, PrecomputedLandmarks, largest_face

__all__ = ["Face", "Landmarks", "MediaPipeLandmarks", "PrecomputedLandmarks", "largest_face"]
