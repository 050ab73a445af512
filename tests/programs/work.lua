-- A script that leans on errors (Wasm exceptions), coroutines, tables, strings and the collector. Deterministic output.
local function check(n)
  if n % 7 == 0 then error({ code = n }) end
  if n % 11 == 0 then error("bad " .. n, 0) end
  return n
end

local caught, codes, texts = 0, 0, {}
for i = 1, 20000 do
  local ok, err = pcall(check, i)
  if not ok then
    caught = caught + 1
    if type(err) == "table" then codes = codes + err.code else texts[#texts + 1] = err end
  end
end
print("caught", caught, codes, #texts, texts[1], texts[#texts])
print(select(2, xpcall(function() local x = nil; return x.field end, function(m) return "handled: " .. m:gsub("^.-:%d+: ", "") end)))

local squares = coroutine.wrap(function() for i = 1, 10 do coroutine.yield(i * i) end error("spent") end)
local sum = 0
for _ = 1, 10 do sum = sum + squares() end
print("squares", sum, (pcall(squares)))

local words = {}
for word in ("the quick brown fox jumps over the lazy dog the end"):gmatch("%a+") do words[word] = (words[word] or 0) + 1 end
local order = {}
for word, n in pairs(words) do order[#order + 1] = word .. "=" .. n end
table.sort(order)
print(table.concat(order, " "))

local garbage = 0
for i = 1, 200000 do garbage = garbage + #tostring({}):sub(1, 5) + #string.rep("x", i % 50) end
collectgarbage()
print("garbage", garbage, collectgarbage("count") < 2048)
print(string.format("%.6f %5d %q %x", math.pi, 42, "a\nb", 255), #arg, math.maxinteger, 7 // 2, 2 ^ 0.5)
