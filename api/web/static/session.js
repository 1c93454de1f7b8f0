// The API key of this tab. It is never put into a URL, and is gone when the tab is closed.

const NAME = "strucprune.key";

export const getKey = () => sessionStorage.getItem(NAME);
export const setKey = (key) => sessionStorage.setItem(NAME, key);
export const forgetKey = () => sessionStorage.removeItem(NAME);
