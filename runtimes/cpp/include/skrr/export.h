#ifndef SKRR_EXPORT_H
#define SKRR_EXPORT_H

/* Everything else is hidden; the static library says SKRR_STATIC, so that who links it does not export it again. */
#ifdef SKRR_STATIC
#define SKRR_EXPORT
#else
#define SKRR_EXPORT __attribute__((visibility("default")))
#endif

#endif /* SKRR_EXPORT_H */
