// A chart's Vega-Lite specification from what charts.py says of it: a function a kind. Curve charts read `CURVES`.

const GREY = "#868e96", BLUE = "#1c7ed6";
const CURVES = {name: "curves", format: {type: "csv"}};
const DASHED = {type: "rule", strokeDash: [4, 3], color: GREY};

const category = (field, rest) => ({field, type: "nominal", ...rest});
const quantity = (field, rest) => ({field, type: "quantitative", ...rest});

// Vega asks for one tick more than this step allows, so that a step of 1 gives halves, shown as 1, 2, 2.
const EPOCHS = quantity("epoch", {title: "epoch", axis: {tickMinStep: 1.5, format: "d"}, scale: {nice: false}});

function logarithmic(field, title) {
  return quantity(field, {title, axis: {format: "~g", tickCount: 8}, scale: {type: "log", nice: false}});
}

// What the pointer is told of a curve; `prefix` stands before mean, low and high in the fields' names.
function tips(prefix, title) {
  return [
    category("curve", {title: "curve"}),
    quantity("epoch", {title: "epoch"}),
    quantity(prefix + "mean", {title, format: ".4~g"}),
    quantity(prefix + "low", {title: "mean − sd", format: ".4~g"}),
    quantity(prefix + "high", {title: "mean + sd", format: ".4~g"}),
    quantity("n", {title: "seeds"}),
  ];
}

// Differences to a baseline with intervals, a row a curve.
function differences({rows, base}) {
  const largest = Math.max(0.1, ...rows.flatMap(row => [row.diff, row.from, row.to].map(Math.abs)));
  const ticks = [0.1, 0.3, 1, 3, 10, 30].filter(tick => tick <= largest * 1.5);
  const axis = {
    values: [...ticks.map(tick => -tick).reverse(), 0, ...ticks],
    labelExpr: "replace(datum.value, '-', '−')",
    labelFlush: false,
  };
  const scale = {type: "symlog", constant: 0.1, domain: [-largest * 1.15, largest * 1.15]};
  const shared = {
    y: category("curve", {sort: null, title: null, axis: {labelLimit: Math.min(300, innerWidth / 2.2)}}),
    color: {condition: {test: "datum.word == 'differs'", value: BLUE}, value: GREY},
    tooltip: [
      category("curve", {title: "curve"}),
      quantity("diff", {title: "difference [pp]", format: "+.3f"}),
      quantity("from", {title: "95 % from", format: "+.3f"}),
      quantity("to", {title: "to", format: "+.3f"}),
      quantity("p_holm", {title: "p (Holm)", format: ".3g"}),
      category("word", {title: "in words"}),
      quantity("seeds", {title: "n"}),
    ],
  };
  const difference = quantity("diff", {title: ["test error [pp], symmetric log scale,", `minus that of ${base}`], axis, scale});
  return {
    data: {values: rows},
    height: 20 * rows.length,
    layer: [
      {mark: DASHED, encoding: {x: {datum: 0}}},
      {mark: {type: "rule", strokeWidth: 2}, encoding: {...shared, x: quantity("from", {scale}), x2: {field: "to"}}},
      {mark: {type: "point", filled: true, size: 70, opacity: 1}, encoding: {...shared, x: difference}},
    ],
  };
}

// Curves of one epoch are points, and their bands are bars.
const band = single => (single ? {type: "rule", opacity: 1} : {type: "area", opacity: 0.15});

// One of the paper's figures: a curve a schedule, with bands over seeds.
function figure({dataset, protocols, measure, title, curves, colors, dashes, tall, single}) {
  const long = Math.max(...curves.map(curve => curve.length)) > 16 && innerWidth < 640;
  const legend = {
    orient: "bottom", columns: long ? 1 : 3, title: null, labelLimit: 300,
    symbolType: "stroke", symbolSize: 500, symbolOpacity: 1, symbolStrokeWidth: 2,
  };
  const dash = category("curve", {scale: {domain: curves, range: dashes}, title: null});
  const picked = (value, otherwise) => ({condition: {param: "picked", value}, value: otherwise});
  const [mean, low, high] = ["mean", "low", "high"].map(part => `${measure}_${part}`);
  const tooltip = tips(measure + "_", title);
  return {
    data: CURVES,
    height: tall ? 420 : 300,
    transform: [
      {filter: {field: "dataset", equal: dataset}},
      {filter: {field: "protocol", oneOf: protocols}},
      {filter: {field: "curve", oneOf: curves}},
    ],
    encoding: {x: EPOCHS, color: category("curve", {scale: {domain: curves, range: colors}, legend})},
    layer: [
      {mark: band(single), encoding: {y: quantity(low), y2: {field: high}, opacity: picked(single ? 1 : 0.12, 0.02)}},
      {
        params: [{name: "picked", select: {type: "point", fields: ["curve"]}, bind: "legend"}],
        mark: {type: "line", strokeWidth: 2, point: single},
        encoding: {y: logarithmic(mean, title), strokeDash: dash, opacity: picked(1, 0.12), tooltip},
      },
      {mark: {type: "point", filled: true, size: 90, opacity: 0}, encoding: {y: quantity(mean), tooltip}},
    ],
  };
}

// Pick data set, protocol, schedule and measure; bands, values by pointer, and by a slider over the epochs.
function explorer(offered) {
  const {roles, missing} = offered;
  const keys = missing.map(([dataset, protocol, key]) => ({dataset, protocol, key}));
  const gaps = {
    data: {values: keys},
    transform: [{filter: "datum.dataset == dataset && datum.protocol == protocol && datum.key == curve"}],
    mark: {type: "text", text: "not run", fontSize: 14, fontWeight: "bold", align: "left", baseline: "middle"},
    encoding: {x: {value: 0}, y: {value: -50}},
  };
  const values = ["chosen", "α = 1", "BN (PyTorch)"].map((role, row) => valueAt(role, roles[role], -50 + 18 * row));
  return {
    data: CURVES,
    height: 340,
    title: {text: {expr: explorerTitle(offered)}, anchor: "start", offset: 8},
    params: menus(offered),
    transform: EXPLORED,
    layer: [...exploredCurves(offered), ...values, gaps],
  };
}

function menus({datasets, protocols, schedules, measures, first, epochs}) {
  const beside = ["α = 1 and BN", "every schedule", "nothing"].map(text => [text, text]);
  const menu = (name, text, choices, value) => {
    const [options, labels] = [0, 1].map(part => choices.map(choice => choice[part]));
    return {name, value, bind: {input: "select", options, labels, name: text + " "}};
  };
  return [
    menu("dataset", "Data set", datasets, first.dataset),
    menu("protocol", "Protocol", protocols, first.protocol),
    menu("curve", "Schedule", schedules, first.curve),
    menu("measure", "Shown", measures, "test_error_pct"),
    menu("beside", "Beside it", beside, beside[0][0]),
    {name: "at", value: epochs, bind: {input: "range", min: 1, max: epochs, step: 1, name: "Epoch "}},
  ];
}

// A Vega expression: "MNIST, protocol A: test error [%]" of what the menus say.
function explorerTitle({datasets, measures}) {
  const names = Object.fromEntries(datasets.map(([name, label]) => [name, label.split(" (")[0]]));
  const units = Object.fromEntries(measures);
  return `(${JSON.stringify(names)})[dataset] + ', protocol ' + protocol + ': ' + (${JSON.stringify(units)})[measure]`;
}

// The curves that the menus ask for, each with its role and the measure's mean, low and high.
const EXPLORED = [
  {filter: "datum.dataset == dataset"},
  {
    as: "role",
    calculate: `datum.protocol == protocol && datum.key == curve ? 'chosen'
      : beside == 'nothing' ? ''
      : datum.protocol == protocol && datum.key == '1' ? 'α = 1'
      : datum.key == 'bn' ? 'BN (PyTorch)'
      : datum.protocol == protocol && beside == 'every schedule' ? 'other' : ''`,
  },
  {filter: "datum.role != ''"},
  ...["mean", "low", "high"].map(part => ({calculate: `datum[measure + '_${part}']`, as: part})),
  {filter: "isValid(datum.mean)"},
  {joinaggregate: [{op: "max", field: "epoch", as: "last"}]},
];

// One curve at the slider's epoch, which goes on where a data set's epochs end.
const atEpoch = role => ({filter: `datum.role == '${role}' && datum.epoch == min(at, datum.last)`});

function exploredCurves({roles, epochs}) {
  const single = epochs === 1;
  const curve = {
    color: category("role", {scale: {domain: Object.keys(roles), range: Object.values(roles)}, legend: null}),
    detail: category("curve"),
  };
  const [epoch, mean, low] = ["epoch", "mean", "low"].map(field => quantity(field));
  const width = {condition: {test: "datum.role == 'other'", value: 1}, value: 2.5};
  const near = {type: "point", fields: ["epoch", "curve"], nearest: true, on: "pointerover"};
  const opacity = {condition: {param: "near", value: 1, empty: false}, value: 0};
  return [
    {
      transform: [{filter: "datum.role != 'other'"}],
      mark: band(single),
      encoding: {...curve, x: epoch, y: low, y2: {field: "high"}},
    },
    {mark: {type: "line", point: single}, encoding: {...curve, x: EPOCHS, y: logarithmic("mean", null), strokeWidth: width}},
    {transform: [atEpoch("chosen")], mark: DASHED, encoding: {x: epoch}},
    {
      params: [{name: "near", select: near}],
      mark: {type: "point", filled: true, size: 90},
      encoding: {color: curve.color, x: epoch, y: mean, opacity, tooltip: tips("", "mean")},
    },
  ];
}

// A line of text above the plot: a curve's name and its value at the slider's epoch.
function valueAt(role, color, y) {
  const spread = "' ± ' + format(datum.high - datum.mean, '.2~g') + ' (n = ' + datum.n + ')'";
  const text = `datum.curve + ', epoch ' + datum.epoch + ': ' + format(datum.mean, '.4~g')
    + (datum.n > 1 ? ${spread} : ' (n = 1)')`;
  return {
    transform: [atEpoch(role), {calculate: text, as: "text"}],
    mark: {type: "text", align: "left", baseline: "middle", fontSize: 13, fontWeight: "bold"},
    encoding: {x: {value: 0}, y: {value: y}, text: category("text"), color: {value: color}},
  };
}
