"""Requests and what they are about, in ten languages.

TUNED was looked at while the rules were written; HELD_OUT was written before them and not looked at until the floor was
stated. A dict is a payload; a text is the last message of a chat.
"""

from __future__ import annotations

from typing import Any

CHAT, CODE, SUMMARISE, CLASSIFY, EXTRACT, EMBED = "chat", "code", "summarise", "classify", "extract", "embed"

ARTICLE = (
    "The town council met on Tuesday to discuss the new bridge. Members argued for two hours about its cost, its place "
    "and its colour. In the end seven voted in favour and four against. Work begins in spring and takes two years. "
)
PYTHON = "```python\ndef mean(xs):\n    return sum(xs) / len(xs)\n```"
LOG = 'Traceback (most recent call last):\n  File "main.py", line 3, in <module>\nZeroDivisionError: division by zero'


def chat(*messages: str, system: str = "", **more: Any) -> dict[str, Any]:
    """A payload of messages, user and assistant in turn."""
    turns = [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(messages)]
    return {"model": "m", "messages": [{"role": "system", "content": system}, *turns] if system else turns, **more}


TUNED: list[tuple[Any, str]] = [
    # English
    ("Hello!", CHAT),
    ("What is the capital of France?", CHAT),
    ("Tell me a joke about penguins.", CHAT),
    ("Write a short poem about autumn.", CHAT),
    ("Plan a REST API", CODE),
    ("Write a FastAPI endpoint", CODE),
    ("Write a Python function that reverses a list.", CODE),
    ("Can you write a bash script that renames all .txt files in a folder?", CODE),
    ("Why does this fail?\n" + LOG, CODE),
    ("Fix the bug:\n" + PYTHON, CODE),
    ("Refactor this class so that it is easier to test.", CODE),
    ("Write unit tests for the login handler", CODE),
    ("How do I join two tables in SQL?", CODE),
    ("Explain what this does:\n" + PYTHON, CODE),
    ("Summarize this article...", SUMMARISE),
    ("Summarise the following text in three sentences: " + ARTICLE * 8, SUMMARISE),
    ("Give me a TL;DR of this thread: " + ARTICLE, SUMMARISE),
    (ARTICLE * 10 + "\n\nPlease summarise the text above.", SUMMARISE),
    ("Could you give me the key points of the meeting notes below?\n" + ARTICLE, SUMMARISE),
    ("Write a summary of the novel Moby-Dick.", SUMMARISE),
    ("Classify this sentiment: I love this product!", CLASSIFY),
    ("Is this review positive or negative? 'The food was cold and the waiter rude.'", CLASSIFY),
    ("Which category does this ticket belong to: billing, technical or other? My invoice is wrong.", CLASSIFY),
    (
        "Label each sentence as fact or opinion.\n1. Water boils at 100 degrees.\n2. Cats are better than dogs.",
        CLASSIFY,
    ),
    ("Is the following message spam? Answer yes or no: You have won a prize", CLASSIFY),
    ("Extract all email addresses from this text: write to anna@example.org or bob@example.org", EXTRACT),
    ("List all people who are mentioned in the text below.\n" + ARTICLE, EXTRACT),
    ("Pull out the invoice number and the total from this invoice: Invoice 4711, total 99 EUR", EXTRACT),
    ("Find all dates in the following paragraph: " + ARTICLE, EXTRACT),
    ("Return the names and ages as JSON: Anna is 31, Bob is 42.", EXTRACT),
    # Adversarial, English
    ("Summarize what this code does in one paragraph:\n" + PYTHON * 4, SUMMARISE),
    ("Summarize the discussion of this issue: the class `Pool` has a bug in its function close().", SUMMARISE),
    ('Translate into German: "Summarize this article"', CHAT),
    ("What does the word 'classify' mean?", CHAT),
    ("Tell me about the class struggle in the 19th century.", CHAT),
    ("My python bit me while I was cleaning its terrarium, what should I do?", CHAT),
    ("What is the function of the liver?", CHAT),
    ("What are the main points of a bicycle frame where it usually breaks?", CHAT),
    ("Write a function that summarizes a text.", CODE),
    ("Write a script to extract emails from a log file.", CODE),
    ("Implement a spam classifier in scikit-learn.", CODE),
    ("Classify these snippets by programming language:\n```\nfn main() {}\n```\n```\nprint(1)\n```", CLASSIFY),
    ("Extract the function names from this code:\n" + PYTHON, EXTRACT),
    ("Write an email to my boss about the summary meeting on Friday.", CHAT),
    ("I would like a summary of my options as a tenant in Berlin.", CHAT),
    # German
    ("Fasse den folgenden Text zusammen: " + ARTICLE, SUMMARISE),
    ("Bitte eine kurze Zusammenfassung dieses Artikels.", SUMMARISE),
    ("Schreibe eine Python-Funktion, die Primzahlen berechnet.", CODE),
    ("Ordne die Kundenanfrage einer der Kategorien zu: Rechnung, Technik, Sonstiges.", CLASSIFY),
    ("Ist dieser Kommentar positiv oder negativ? Das Hotel war schmutzig.", CLASSIFY),
    ("Extrahiere alle Telefonnummern aus dem Text.", EXTRACT),
    ("Wie wird das Wetter morgen?", CHAT),
    ("Erzähl mir eine Gutenachtgeschichte.", CHAT),
    # French
    ("Résume ce texte en deux phrases.", SUMMARISE),
    ("Peux-tu faire un résumé de cet article ?", SUMMARISE),
    ("Écris une fonction JavaScript qui trie un tableau.", CODE),
    ("Classe ces avis selon leur sentiment.", CLASSIFY),
    ("Extrais tous les noms propres du texte suivant.", EXTRACT),
    ("Quelle est la capitale de l'Italie ?", CHAT),
    # Spanish
    ("Resume el siguiente texto en tres frases.", SUMMARISE),
    ("Hazme un resumen del capítulo.", SUMMARISE),
    ("Escribe una función en Python que sume dos números.", CODE),
    ("Clasifica este comentario como positivo o negativo.", CLASSIFY),
    ("Extrae todas las fechas del documento.", EXTRACT),
    ("¿Cuál es la capital de Perú?", CHAT),
    # Portuguese
    ("Resuma o texto a seguir.", SUMMARISE),
    ("Escreva um script em Python que leia um arquivo CSV.", CODE),
    ("Classifique o sentimento desta avaliação.", CLASSIFY),
    ("Extraia os nomes e endereços do texto.", EXTRACT),
    ("Qual é a capital do Brasil?", CHAT),
    # Italian
    ("Riassumi questo articolo in poche righe.", SUMMARISE),
    ("Scrivi una funzione in Java che ordini una lista.", CODE),
    ("Classifica questa recensione come positiva o negativa.", CLASSIFY),
    ("Estrai tutti gli indirizzi email dal testo.", EXTRACT),
    ("Qual è la capitale della Francia?", CHAT),
    # Polish
    ("Streść poniższy tekst w trzech zdaniach.", SUMMARISE),
    ("Napisz funkcję w Pythonie, która sortuje listę.", CODE),
    ("Sklasyfikuj ten komentarz jako pozytywny lub negatywny.", CLASSIFY),
    ("Wypisz wszystkie daty z tekstu.", EXTRACT),
    ("Jaka jest stolica Polski?", CHAT),
    # Russian
    ("Кратко изложи этот текст.", SUMMARISE),
    ("Сделай краткое содержание статьи.", SUMMARISE),
    ("Напиши функцию на Python, которая сортирует список.", CODE),
    ("Определи тональность этого отзыва.", CLASSIFY),
    ("Извлеки все имена из текста.", EXTRACT),
    ("Какая столица у Франции?", CHAT),  # noqa: RUF001
    # Chinese
    ("请总结以下文章的主要内容。", SUMMARISE),
    ("写一个Python函数来排序列表。", CODE),
    ("判断这条评论是正面还是负面。", CLASSIFY),
    ("从下面的文本中提取所有人名。", EXTRACT),
    ("法国的首都是哪里?", CHAT),
    # Japanese
    ("次の文章を要約してください。", SUMMARISE),
    ("リストを並べ替えるPythonの関数を書いてください。", CODE),
    ("このレビューを肯定的か否定的か分類してください。", CLASSIFY),
    ("次の文章から人名を抽出してください。", EXTRACT),
    ("フランスの首都はどこですか?", CHAT),
    # Payloads
    ({"model": "m", "input": ["a text", "another"]}, EMBED),
    ({"model": "m", "prompt": "Summarize: " + ARTICLE}, SUMMARISE),
    (chat("Anna is 31 years old.", format={"type": "object", "properties": {"age": {"type": "integer"}}}), EXTRACT),
    (chat("The food was cold.", format={"properties": {"label": {"enum": ["good", "bad"]}}}), CLASSIFY),
    (chat("Write a quicksort in Rust", "Here: ```rust\nfn q() {}\n```", "Thanks, have a nice day!"), CHAT),
    (chat("Hello", "Hi!", "Summarise our talk."), SUMMARISE),
    (chat("My invoice is wrong again.", system="Classify the user's message into one of: billing, other."), CLASSIFY),
    (chat("Make it faster.", system="You are an expert Python programmer. Answer with code only."), CODE),
    (chat("Hi there!", system="You are a helpful assistant who can summarize, translate and write code."), CHAT),
    ({"model": "m", "prompt": "def fib(n):", "suffix": "    return result"}, CODE),
]

HELD_OUT: list[tuple[Any, str]] = [
    ("Good morning, how are you today?", CHAT),
    ("Who wrote The Brothers Karamazov?", CHAT),
    ("Give me ideas for a birthday party for a six-year-old.", CHAT),
    ("Should I buy an electric car or wait a year?", CHAT),
    ("Create a React component that shows a table with sortable columns.", CODE),
    ("My Dockerfile does not build, the COPY step says no such file. Any idea?", CODE),
    ("Convert this loop into a list comprehension: for x in xs: out.append(x * 2)", CODE),
    ("Debug this: TypeError: unsupported operand type(s) for +: 'int' and 'str'", CODE),
    ("Add type hints and docstrings to utils.py", CODE),
    ("Review my pull request for race conditions.\n" + PYTHON, CODE),
    ("Condense the report below into five bullet points.\n" + ARTICLE * 5, SUMMARISE),
    ("In short, what does this paper say? " + ARTICLE * 6, SUMMARISE),
    ("Here are my notes of the call.\n" + ARTICLE * 4 + "\nWrite me an executive summary.", SUMMARISE),
    ("Shorten this text to 100 words: " + ARTICLE * 3, SUMMARISE),
    ("Sort these animals into mammals, birds and fish: eagle, dolphin, shark", CLASSIFY),
    ("Determine the sentiment of the tweet: cannot believe they lost again", CLASSIFY),
    ("Does this text contain hate speech? Reply with true or false only. Text: I like trains.", CLASSIFY),
    ("Rate the following answer from 1 to 5. Output only the number.", CLASSIFY),
    ("What company names occur in this press release? Give me a list. " + ARTICLE, EXTRACT),
    ("Parse the address into street, city and zip code: 5 Main St, Springfield, 12345", EXTRACT),
    ("Identify all named entities in: Angela Merkel visited Paris in May.", EXTRACT),
    ("Get the phone numbers out of this e-mail: call 555-0100 or 555-0199", EXTRACT),
    ("Summarise this stack trace for a manager: " + LOG, SUMMARISE),
    ("Write a haiku about debugging.", CHAT),
    ("What did Marx mean by class consciousness?", CHAT),
    ("Translate this to French: Please extract the files before running the script.", CHAT),
    ("Write a SQL query that counts the orders of each category.", CODE),
    ("Is Java older than C++?", CHAT),
    ("Kannst du mir den Artikel kurz zusammenfassen?\n" + ARTICLE, SUMMARISE),
    ("Schreib mir ein Skript, das alle PDF-Dateien umbenennt.", CODE),
    ("Klassifiziere die folgenden E-Mails nach Dringlichkeit.", CLASSIFY),
    ("Welche Personen werden im Text genannt? Gib nur eine Liste aus.", EXTRACT),
    ("Was koche ich heute Abend mit Kartoffeln und Eiern?", CHAT),
    ("Warum wirft mein Java-Programm eine NullPointerException?", CODE),
    ("Fais une synthèse du rapport suivant.", SUMMARISE),
    ("Corrige ce code Python, il y a une erreur.", CODE),
    ("Ce message est-il un spam ? Réponds par oui ou non.", CLASSIFY),
    ("Donne-moi une recette de ratatouille.", CHAT),
    ("Relève toutes les dates mentionnées dans ce document.", EXTRACT),
    ("Sintetiza este informe en cinco puntos.", SUMMARISE),
    ("Corrige el error de este código.", CODE),
    ("¿A qué categoría pertenece este producto?", CLASSIFY),
    ("Enumera los nombres de personas que aparecen en el texto.", EXTRACT),
    ("Cuéntame un chiste.", CHAT),
    ("Faça um resumo do relatório abaixo.", SUMMARISE),
    ("Crie uma API em Node.js para cadastro de usuários.", CODE),
    ("Identifique todas as datas no texto abaixo.", EXTRACT),
    ("Fammi un riassunto del capitolo.", SUMMARISE),
    ("Correggi questo codice, non compila.", CODE),
    ("Raccontami una storia.", CHAT),
    ("Podsumuj artykuł w pięciu punktach.", SUMMARISE),
    ("Popraw błąd w tym kodzie.", CODE),
    ("Co mogę ugotować na obiad?", CHAT),
    ("Подведи итог обсуждению.", SUMMARISE),
    ("Исправь ошибку в этом коде.", CODE),
    ("Классифицируй сообщения по темам.", CLASSIFY),
    ("Расскажи анекдот.", CHAT),
    ("用三句话概括这篇报告。", SUMMARISE),
    ("这段代码有什么错误?", CODE),
    ("把这些新闻按主题分类。", CLASSIFY),
    ("给我讲个笑话。", CHAT),
    ("この記事を三行でまとめて。", SUMMARISE),
    ("このコードのバグを直して。", CODE),
    ("文中の日付をすべて抜き出して。", EXTRACT),
    ("今日の夕食は何がいいですか?", CHAT),
    (
        chat("Total due: 14.90 EUR, date 3 May", format={"type": "object", "properties": {"total": {}, "date": {}}}),
        EXTRACT,
    ),
    (
        chat("I want my money back", system="You are a text classifier. Output one label: refund, praise, question."),
        CLASSIFY,
    ),
    ({"model": "m", "prompt": "Explain quantum entanglement to a child."}, CHAT),
    ({"model": "m", "messages": []}, CHAT),
]
