// What the page knows while it is open: the models' contracts, the picture given and what is shown of it.

export const state = { contracts: new Map(), file: null, picture: null, cards: [], wanted: null, running: null, first: null };
