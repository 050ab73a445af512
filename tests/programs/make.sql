-- Makes the database that the test brings into the CVM: accounts and payments, deterministic.
PRAGMA page_size = 4096;
PRAGMA journal_mode = DELETE;
CREATE TABLE account (id INTEGER PRIMARY KEY, owner TEXT NOT NULL, balance INTEGER NOT NULL CHECK (balance >= 0));
CREATE TABLE payment (id INTEGER PRIMARY KEY, source INTEGER REFERENCES account, target INTEGER REFERENCES account,
                      amount INTEGER NOT NULL, note TEXT);
WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 2000)
INSERT INTO account SELECT i, printf('owner-%04d', i * 7919 % 2003), i * 104729 % 100000 FROM n;
CREATE INDEX account_owner ON account (owner);
SELECT count(*), sum(balance) FROM account;
