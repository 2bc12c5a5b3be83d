"""A text-to-image system small enough to ship: scenes of coloured shapes, their captions, a judge, trained models."""
