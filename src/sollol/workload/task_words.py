"""Words that indicate a task type, in ten languages: the vocabulary of `workload.classification`.

Each entry is a weight and its words; two points decide. `verb*` is a stem. Words of languages without spaces
(Chinese, Japanese) match anywhere in the text.
"""

from __future__ import annotations

from typing import Final

SUMMARISE: Final = 0
CLASSIFY: Final = 1
EXTRACT: Final = 2
CODE: Final = 3
PROSE: Final = 4
OTHER: Final = 5
MAKE: Final = 6
LIST: Final = 7
SOURCE: Final = 8
# Meanings of words. PROSE: a poem or a letter, so no code. OTHER: a verb such as "translate", whose object does not
# matter. MAKE: write, create, fix, of code or of anything else. LIST: name, find: EXTRACT if there is a text. SOURCE:
# there is a text.

_STRONG = 2
_WEAK = 1

_TABLE: dict[int, dict[int, str]] = {
    SUMMARISE: {
        _STRONG: """
            summar* condense condensed tldr tl gist recap abridge précis shorten
            fasse fass zusammenfassen zusammenfassung zusammengefasst zusammenzufassen kurzfassung kürze
            résumer résumez résumé résumés synthéti* synthèse
            resumir resumen resumas resúmelo resumeme resúmeme sintetiz* síntesis
            resuma resumo resumos síntese
            riassu* sintesi sintetizza
            streść streszcz* podsumu* podsumow*
            резюмиру* суммируй* обобщи* переска* подытож* саммари""",
        _WEAK: """
            overview outline bullet bullets points takeaways nutshell
            stichpunkte überblick zusammen kernaussagen
            résume resume résumes resumes grandes lignes
            puntos pontos punti punktach skrócie skrót
            кратко краткое краткий изложи изложить содержание подведи итог итоги""",
    },
    CLASSIFY: {
        _STRONG: """
            classify classifies classifying classifier label sentiment sentiments categorize categorise categorizing
            klassifi* kategori* stimmung
            classifie classifier classifiez catégori*
            clasifi* categori* sentimiento
            classifique sentimento categorize
            classifica classificare sentimento categorizza
            sklasyfi* klasyfi* skategor* sentyment
            классифи* тональность сентимент""",
        _WEAK: """
            category categories labels spam ham positive negative neutral belong belongs urgent toxic yes true false
            kategorie kategorien positiv negativ ordne einordnen dringlichkeit gehört ja
            catégorie catégories positif négatif positive négative classe appartient pourriel indésirable oui
            categoría categorías positivo negativo pertenece etiqueta etiquetas sí
            categoria categorias pertence positiva negativa
            appartiene etichetta categorie sì
            kategoria kategorii kategorie kategorię pozytywny negatywny pozytywna negatywna należy tak
            категор* позитивный негативный положительный отрицательный относится определи спам да""",
    },
    EXTRACT: {
        _STRONG: """
            extract extracts extracting extraction scrape
            extrahie* herausfiltern
            extrais extraire extrayez extraction relève relevez
            extrae extraer extraiga extraigas
            extraia extrair
            estrai estrarre estraete
            wyodrębn* wypisz wyciągnij wyekstrahuj
            извлек* извлеч* выпиши* вытащи*""",
        _WEAK: "entities entity json fields",
    },
    CODE: {
        _STRONG: """
            implement implementing implementiere implémente implementa implemente zaimplementuj реализуй
            refactor* debug debugging traceback stacktrace regex regexp regexes sql sqlite mysql postgres postgresql
            javascript typescript numpy pandas django fastapi flask pytest unittest pydantic asyncio kotlin golang
            dockerfile docker kubernetes kubectl terraform nginx webpack npm pip cmake makefile bash powershell
            html css yaml graphql api apis endpoint endpoints backend frontend microservice webhook
            nullpointerexception typeerror valueerror keyerror segfault syntaxerror undefined stderr stdout
            c++ c# async mutex struct enum lambda docstring docstrings codebase
            quicksort mergesort leetcode algorithm github gitlab repository commit rebase
            quellcode programmieren algorithmus programmer programmez programmeur
            algoritmo algoritmos algorithme algorytm алгоритм*""",
        _WEAK: """
            code python java rust swift ruby php perl scala haskell matlab script scripts function functions class
            classes
            method methods variable variables loop loops compile compiler bug bugs bugfix exception unit tests test
            library
            module package import parser array string integer query database table tables schema git
            program programs programmer programming component handler login type hints server client thread react
            angular
            funktion funktionen skript skripte klasse methode schleife programm datenbank fehler programmiere
            fonction fonctions tableau boucle programme classe méthode
            función funciones código programa clase método bucle
            função funções programa
            funzione funzioni codice programma ciclo metodo
            funkcję funkcja funkcji kod kodu kodzie program programu skrypt klasę pętlę pythonie błąd
            функци* код кода коде программу программа скрипт класс цикл метод ошибку баг""",  # noqa: RUF001
    },
    PROSE: {
        _STRONG: """
            poem haiku sonnet story stories essay novel song lyrics letter email mail blog speech toast joke limerick
            tweet caption slogan biography screenplay dialogue invitation recipe
            gedicht geschichte aufsatz brief rede lied witz einladung rezept gutenachtgeschichte
            poème histoire lettre courriel discours chanson blague rédaction recette
            poema cuento carta correo discurso canción chiste ensayo receta
            conto história piada redação receita
            poesia storia lettera canzone barzelletta ricetta
            wiersz opowiadanie historię piosenkę dowcip wypracowanie przepis
            стихотворение стих рассказ сказку письмо речь песню анекдот сочинение рецепт""",
    },
    OTHER: {
        _STRONG: """
            translate translating translation
            übersetze übersetz übersetzen
            traduis traduire traduisez
            traduce traducir traduzca traduz traduza traduzir
            traduci tradurre
            przetłumacz tłumacz
            переведи переведите перевести""",
    },
    MAKE: {
        _STRONG: """
            write create build make add fix code develop generate convert port optimize optimise rewrite design
            plan review improve run extend finish complete test explain
            schreibe schreib erstelle baue behebe korrigiere programmiere entwickle erkläre erklär verbessere
            écris écrivez crée créez corrige développe génère explique optimise
            escribe escriba crea corrige desarrolla genera explica optimiza
            escreva crie corrija desenvolva gere explique otimize
            scrivi correggi sviluppa spiega ottimizza
            napisz stwórz popraw utwórz wyjaśnij zoptymalizuj
            напиши напишите создай исправь сделай объясни оптимизируй""",
    },
    LIST: {
        _STRONG: """
            list find identify pull parse return collect enumerate
            finde liste suche identifiziere
            trouve identifie repère
            lista enumera encuentra identifica busca
            encontre identifique enumere
            elenca trova individua
            wymień znajdź zidentyfikuj
            перечисли найди""",
        _WEAK: """
            what which get give name who
            welche nenne gib wer
            quels quelles donne nomme
            qué cuáles quiénes quais
            quali
            podaj jakie
            какие назови укажи""",
    },
    SOURCE: {
        _STRONG: """
            mentioned appear appears occur occurs contained
            genannt erwähnt vorkommen vorkommt
            mentionnés mentionnées
            aparecen mencionan mencionados
            menzionati menzionate
            wymienione упомянут*""",
        _WEAK: """
            text texts paragraph document article passage transcript report invoice press notes thread conversation
            below above following paper chapter meeting
            texte rapport suivant passage chapitre
            artikel dokument absatz bericht rechnung folgenden unten kapitel
            texto artículo documento informe siguiente capítulo
            artigo relatório abaixo seguir seguinte
            testo articolo relazione seguente capitolo
            tekstu tekst tekście artykuł dokumentu poniższy poniższego raport rozdział
            текст текста тексте статьи статью документа отчёт отчет главы обсужден*""",
    },
}

_ANYWHERE: dict[int, dict[int, str]] = {
    SUMMARISE: {_STRONG: "总结 概括 摘要 概述 總結 要約 まとめて まとめ 要旨 簡潔に 要点 归纳 梗概"},
    CLASSIFY: {
        _STRONG: "分类 分類 归类 情感分析 カテゴリ 感情分析 类别 正面还是负面",
        _WEAK: "判断 正面 负面 肯定的 否定的 垃圾邮件 属于 標籤 标签 スパム",
    },
    EXTRACT: {_STRONG: "提取 抽取 抽出 抜き出 摘录 取り出し 找出", _WEAK: "列出 リストアップ 所有"},
    CODE: {
        _STRONG: "代码 程序 编程 程式 コード プログラム スクリプト 算法 アルゴリズム 调试 デバッグ 脚本 正则",
        _WEAK: "函数 関数 クラス 变量 配列 数组 错误 バグ 编译 接口 数据库",
    },
    PROSE: {_STRONG: "诗 故事 邮件给 笑话 詩 物語 手紙 作文 メールを書"},
    OTHER: {_STRONG: "翻译 翻譯 翻訳 訳して"},
    MAKE: {_STRONG: "写 書い 作成 实现 実装 编写 修复 直して 修正 作って 创建"},
}


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


STEPS = _set(
    """step steps prove proof compare architecture detail detailed tradeoffs thorough thoroughly analyze analyse
    evaluate schritt beweise vergleiche ausführlich étape étapes prouve détail paso pasos demuestra compara detalle
    passo passos detalhe passi dimostra confronta krok porównaj udowodnij шаг сравни докажи подробно"""
)
"""Words that ask for several steps."""

EXTENSIONS = _set(
    """py js ts tsx jsx rs go java kt c h cpp hpp cs rb php swift scala sh ps1 sql html css vue yml yaml toml
    ipynb lua zig ex exs hs ml r jl proto gradle lock cfg ini"""
)
"""Endings of files of code."""

WORDS: dict[str, tuple[int, int]] = {}
STEMS: dict[str, tuple[int, int]] = {}
ANYWHERE: tuple[tuple[str, int, int], ...] = tuple(
    (part, sign, weight) for sign, rows in _ANYWHERE.items() for weight, text in rows.items() for part in text.split()
)

for _sign, _rows in _TABLE.items():
    for _weight, _text in _rows.items():
        for _word in _text.split():
            _home = STEMS if _word.endswith("*") else WORDS
            _home.setdefault(_word.rstrip("*"), (_sign, _weight))
