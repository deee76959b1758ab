"""Train every pin again and write down what differs: `make golden`. Rows that still match keep their digits.

So the diff shows what changed, and not another processor's rounding. Pins whose data are not at hand keep their rows.
"""

import layers
import pins


def remade_rows() -> list[str]:
    """Write rows.csv; what differs from the one before, in a line a cell, and how far the rest is off."""
    before = pins.read() if pins.ROWS.exists() else {}
    after, changed, furthest = {}, [], 0.0
    for name, pin in pins.PINS.items():
        kept = [before.get((name, cell), []) for cell in pin.cells]
        if pins.missing_data(pin):
            print(f"{name}: kept as it is; its data are not at hand, set DBNRUN_DATA to their folder")
            found = kept
        else:
            found = pins.trained(pin, "alone")
        for cell, old, new in zip(pin.cells, kept, found, strict=True):
            unlike = pins.differences(old, new, pin.rtol)
            after[name, cell] = new if unlike else old
            changed += [f"{name}, {cell or 'as it is'}: {line}" for line in unlike[:1]]
            if not unlike:
                pairs = zip(old, new, strict=True)
                shares = (pins.of_tolerance(column, *pair, pin.rtol) for pair in pairs for column in pair[1])
                furthest = max(furthest, *shares)
    pins.write(after)
    return [*changed, f"rows that match lie within {furthest:.2g} of the tolerance"]


def remade_layers() -> list[str]:
    """Write layers.json; what differs from the one before, in a line each."""
    before, after = layers.read() if layers.LAYERS.exists() else {}, layers.computed()
    changed = layers.differences(before, after)
    if changed:
        layers.write(after)
    return changed


if __name__ == "__main__":
    print("\n".join(remade_rows() + remade_layers()))
