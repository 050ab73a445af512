-- What the program does with the database it finds: transactions, a trigger, a view, joins, windows, JSON, full rollback.
PRAGMA foreign_keys = ON;
SELECT 'before', count(*), sum(balance) FROM account;
BEGIN;
WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
INSERT INTO payment (source, target, amount, note)
SELECT 1 + i * 31 % 2000, 1 + i * 17 % 2000, i * 7 % 97, 'payment no. ' || i FROM n;
COMMIT;
CREATE INDEX payment_source ON payment (source, amount);
CREATE VIEW flow AS
SELECT a.id, a.owner, a.balance,
       (SELECT coalesce(sum(amount), 0) FROM payment WHERE target = a.id) AS received,
       (SELECT coalesce(sum(amount), 0) FROM payment WHERE source = a.id) AS spent
FROM account a;
CREATE INDEX payment_target ON payment (target);
SELECT * FROM flow WHERE id % 400 = 1 ORDER BY id;
CREATE TRIGGER audit AFTER UPDATE OF balance ON account WHEN new.balance > 1000000
BEGIN UPDATE account SET owner = 'rich ' || new.owner WHERE id = new.id; END;
UPDATE account SET balance = balance * 11 WHERE id % 10 = 0;
SELECT count(*) FROM account WHERE owner LIKE 'rich %';
SELECT note, amount, rank() OVER (ORDER BY amount DESC, id) AS place FROM payment WHERE source = 42 ORDER BY place LIMIT 5;
SELECT json_group_array(json_object('owner', owner, 'balance', balance)) FROM account WHERE id < 4;
SELECT group_concat(amount, ',') FROM (SELECT DISTINCT amount FROM payment ORDER BY amount LIMIT 10);
BEGIN;
DELETE FROM payment;
SELECT 'deleted', count(*) FROM payment;
ROLLBACK;
SELECT 'rolled back', count(*) FROM payment;
DELETE FROM payment WHERE id % 3 = 0;
VACUUM;
PRAGMA integrity_check;
SELECT 'after', count(*), sum(balance), round(avg(balance), 3) FROM account;
