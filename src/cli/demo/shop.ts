import { assert } from '../../errors.ts';
import type { Connection } from '../../postgres/connection.ts';

/** The data the demonstration is about: a small shop. */
export const CREATE_SHOP = [
  'CREATE TABLE customers (id bigint PRIMARY KEY, name text NOT NULL, since timestamptz NOT NULL)',
  'CREATE TABLE orders (id bigserial PRIMARY KEY, customer bigint NOT NULL REFERENCES customers, placed timestamptz NOT NULL DEFAULT clock_timestamp(), cents int NOT NULL, note text)',
  "INSERT INTO customers SELECT n, 'customer ' || n, now() FROM generate_series(1, 5000) AS n",
  'INSERT INTO orders (customer, cents, note) SELECT 1 + n % 5000, 100 + n * 7919 % 90000, md5(n::text) FROM generate_series(1, 200000) AS n',
];

/** Some minutes of business: changes among the newest orders, and new ones, one transaction each. */
export async function trade(shop: Connection, transactions: number): Promise<void> {
  for (let n = 0; n < transactions; n += 1) {
    await shop.query(
      `WITH changed AS (UPDATE orders SET cents = cents + 1 WHERE id = 190001 + ${n} * 7919 % 10000 RETURNING customer)
       INSERT INTO orders (customer, cents, note) SELECT customer, ${100 + n}, 'order of the day' FROM changed`,
    );
  }
}

export interface OrdersDigest {
  orders: number;
  digest: string;
}

/** Count and digest of every row of `orders`: equal only for equal content. */
export async function digestOrders(shop: Connection): Promise<OrdersDigest> {
  const [row] = await shop.query<OrdersDigest>(
    "SELECT count(*)::int AS orders, md5(string_agg(md5(o::text), '' ORDER BY id)) AS digest FROM orders AS o",
  );
  assert(row !== undefined, 'count(*) gave no row');
  return row;
}

/** Someone's migration goes wrong. Returns the transaction that did it. */
export async function dropOrders(shop: Connection): Promise<string> {
  await shop.query('BEGIN');
  const [row] = await shop.query<{ xid: string }>('SELECT pg_current_xact_id()::xid::text AS xid');
  await shop.query('DROP TABLE orders');
  await shop.query('COMMIT');
  return row?.xid ?? '';
}
