/** Held to package.json by a test, so that starting does not read and parse a file for it. */
export const VERSION = '0.1.0';
